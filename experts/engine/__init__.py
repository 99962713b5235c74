"""Runs a base that carries experts: answers, streams and likelihoods, each row under its mixture."""
