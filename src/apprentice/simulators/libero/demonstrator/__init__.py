"""The scripted demonstrator: it grasps, places, opens and turns by privileged state."""
