"""The one process of ours on each node of a job: it fills slots, watches runs, and reports."""
