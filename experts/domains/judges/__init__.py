"""What an answer says, and whether that is right: numbers, choices, comparisons, and judges that may never return."""
