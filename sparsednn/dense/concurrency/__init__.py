"""Independent operations of a network side by side: bounds, profiles, schedules, execution."""
