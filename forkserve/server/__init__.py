"""One worker's server: the reactor, its connections, and the way of a request through them."""
