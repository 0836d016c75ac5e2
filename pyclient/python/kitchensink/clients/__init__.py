"""The seeds' import path of the client: `from kitchensink.clients.http import Client`."""
