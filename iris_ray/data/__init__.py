"""Annotated data: from files to chat messages, from chat messages to token ids, from those to the splits."""
