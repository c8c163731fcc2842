"""The Hub, played by the loopback hub, with real clients in processes of their own."""
