"""The trained model at work: in process, over HTTP, as an agent's tool."""
