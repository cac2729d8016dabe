"""Alarms reach people: what Alertmanager says is passed on to mail, chat robots and webhooks."""
