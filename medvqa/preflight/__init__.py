"""Overrides in; a report of needs, costs and mistakes out; may import run and below."""
