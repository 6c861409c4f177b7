"""Tasks: examples, template, and choices or a metric; from task cards (YAML) and their sources."""

from rlprompt.tasks.load import list_tasks, load_task, task_from_config
from rlprompt.tasks.task import Task
from rlprompt.tasks.template import MASK, Template

__all__ = ["MASK", "Task", "Template", "list_tasks", "load_task", "task_from_config"]
