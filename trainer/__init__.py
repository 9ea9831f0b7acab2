"""Fine-tuning of speech models: what runs on the pod."""
