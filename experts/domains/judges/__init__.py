"""What an answer says and whether it is right: numbers, choices, comparisons, and judges that may never return."""
