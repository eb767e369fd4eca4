"""`python -m ssl_views` is the `ssl-views` command."""

import sys

from ssl_views.cli import main

if __name__ == "__main__":
    sys.exit(main())
