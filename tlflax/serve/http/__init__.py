"""The service on the network: its address, its connections, and how it starts and stops."""
