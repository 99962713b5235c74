"""What comes from outside, and what is left there: files, chats and pictures, and the one line for a mistake in them.

Each is checked once, where it enters, by one reader of its kind.
"""
