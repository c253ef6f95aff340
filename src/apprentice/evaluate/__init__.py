"""Closed-loop success rates on LIBERO, with their uncertainty, and the report page that shows them."""
