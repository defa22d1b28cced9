from .logs import Logs, results

__all__ = ["Logs", "results"]
