"""The screens that lie above the views: help, questions and forms."""
