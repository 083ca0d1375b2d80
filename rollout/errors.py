from rewards.errors import UserError

__all__ = ["UserError"]
