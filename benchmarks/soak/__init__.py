"""The demo in a loop for an hour, while its parts are killed, hung, scaled and visited at random."""
