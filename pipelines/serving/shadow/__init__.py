"""The challenger beside the champion: it sees a share of the traffic and answers nobody."""
