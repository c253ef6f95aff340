"""One closed-loop episode: who acts, what is changed in it, what is kept of it, and why it failed."""
