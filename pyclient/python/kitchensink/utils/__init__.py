"""The seeds' import path of the decorators: `from kitchensink.utils.decorators import memoize, remote`."""
