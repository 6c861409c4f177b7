"""The HTTP server that rewrites requests on their way to an LLM."""
