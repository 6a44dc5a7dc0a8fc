"""HTTP: an API that clients of OpenAI's speak, and the adapters of this machine."""
