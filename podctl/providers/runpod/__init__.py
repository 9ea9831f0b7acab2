"""RunPod over REST v2: `client` speaks HTTP, `provider` speaks nouns, the rest decides and is pure."""
