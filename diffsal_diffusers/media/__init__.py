"""Files to arrays and back: decoding, audio, log-mel spectrograms, writers."""
