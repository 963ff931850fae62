"""An event-driven simulation of a cluster around the scheduler's core: what a policy would do with a workload.

The clock, the caches, the under-store and the jobs are simulated; every decision is the core's. See `run.simulate`.
"""
