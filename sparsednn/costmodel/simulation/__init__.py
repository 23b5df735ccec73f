"""Discrete replay of ranks, layers and messages: late ranks make others late.

**What is simulated.** A rank's processor does one thing at a time. In each step (a layer of a tile,
forward or backward) a rank

1. packs, and pays o for each message that it sends; then all of them are ready at once;
2. computes what needs nothing from others;
3. waits until all messages of this step that go to it are there, and its own have left;
4. pays o for each message that it got, computes what it received, and begins its next step.

Messages that are ready queue, first come first served, in the order of the plan, at the sending
port of their rank (to ranks of the same node) or at the card of their node (to other nodes). A
message of n bytes occupies the sender for n/B; α after its start its head is at the receiver's port
(of the rank, or the node's card), where it queues again and takes n/B. Heads do not wait for tails
(cut-through): alone, a message takes α + n/B. Ranks fill the nodes in order. What comes for a step
that a rank has not begun is kept for it, so ranks may run ahead of others.

**Overlap.** While its receiver computes (2.), what travels moves at a share `Link.overlap` of its
speed. So a rank that has begun to compute c seconds before it waits, with messages under way, is
behind by (1 - overlap) c; but never more than all of its messages alone would still take then.
Where overlap is 1, nothing of this matters.

Links are those of the platform; what `calibrate` has measured of whole exchanges is for the closed
form only.

**Not simulated**: agreements on dead columns (columns do not die), noise of the system, routes and
switches between nodes, a sender that has to wait for its receiver (rendezvous), threads of a team.

Where all ranks are alike, the replay takes what the closed form says (`sparse.inference`); it is
never shorter than the longest path without contention (`critical_path`).
"""

from sparsednn.costmodel.simulation.program import Program, Step
from sparsednn.costmodel.simulation.result import Simulation
from sparsednn.costmodel.simulation.runs import (
    critical_path,
    replay,
    simulate_inference,
    simulate_training,
)

__all__ = [
    "Program",
    "Simulation",
    "Step",
    "critical_path",
    "replay",
    "simulate_inference",
    "simulate_training",
]
