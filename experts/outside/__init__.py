"""What comes from outside, and what is left there: files, chats, pictures, plots, and the one line for a mistake.

Each is checked once, where it enters, by one reader of its kind.
"""
