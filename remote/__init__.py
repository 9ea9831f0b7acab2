"""The pod's side of the bargain, and the contract between both sides. Standard library only, Python 3.8."""
