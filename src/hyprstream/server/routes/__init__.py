"""The routes, by what they are about. They translate; what is done is done by the runtime."""
