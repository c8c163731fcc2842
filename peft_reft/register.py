"""Adds the member `REFT` to PEFT's enum of methods: the one thing of PEFT's that this library extends.

`peft.utils.register_peft_method` refuses a name that is no member of `PeftType` (peft/utils/peft_types.py), and Python
enums have no public way to gain one.
"""

from __future__ import annotations

from peft import PeftType

__all__ = ["REFT"]


def _add_member(name: str) -> PeftType:
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType.__members__)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member


REFT: PeftType = _add_member("REFT")
