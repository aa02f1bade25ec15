"""How the miniature teachers are made (`train`) and what they turn out to be good at (`probe`)."""
