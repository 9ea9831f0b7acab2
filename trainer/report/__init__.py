"""One HTML page a run or a comparison, whole in one file: read without torch, without a network, on any machine."""
