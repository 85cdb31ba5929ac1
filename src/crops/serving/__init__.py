"""The server: search over HTTP, and an explorer that shows what is found and why."""
