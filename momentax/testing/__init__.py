"""The conformance battery: what every gradient transformation owes its users, checked in one call.

`check_transform` runs all checks that a transformation's `Traits` call for. `checks_for` lists them, so that
a test suite can give each its own name; each check takes a `Subject`.
"""

from momentax.testing._check_transform import check_transform as check_transform
from momentax.testing._check_transform import checks_for as checks_for
from momentax.testing._subject import Subject as Subject
from momentax.testing._traits import Traits as Traits
