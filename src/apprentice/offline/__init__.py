"""For machines that reach no network: what training takes in one pack, and folders in parts of limited size."""
