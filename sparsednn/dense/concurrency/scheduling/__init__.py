"""Lanes, order and algorithms of all tasks, chosen together under a workspace limit.

`problem` (arrays) → `engine`, `simulate` (predicted times) → `serial`, `listing`, `search` (who
runs where and when) → `assemble` with `order`, `arena` (memory, and the waits that make it safe) →
`planner`.
"""
