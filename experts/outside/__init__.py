"""What comes in from outside, and what goes out: files, chats, pictures, plots, and the one line for a mistake.

Each input is checked once, where it enters, by the one reader for its kind.
"""
