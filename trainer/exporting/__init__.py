"""Trained models as other programs load them: plain transformers, and faster-whisper behind a gate."""
