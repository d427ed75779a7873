"""A model server on loopback that answers from recordings: for the demo, the tests and the benchmarks."""
