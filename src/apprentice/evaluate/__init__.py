"""Closed-loop success rates, with their uncertainty, and the report page that shows them."""
