"""The only place that runs Slurm's commands; everybody else asks here and gets values, never Slurm's text."""
