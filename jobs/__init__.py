"""Scheduler, launcher and site layer: how a command becomes ranks on a machine."""
