"""The laptop's side: decide, rent, reach, watch, give back."""
