"""Files that strangers wrote: read in bounded time and memory, and shown as plain text."""
