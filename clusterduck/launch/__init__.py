"""From override lists to jobs: what ``launch()`` does on the machine where ``--multirun`` is typed."""
