"""python -m procjobs"""

from procjobs.cli import main

if __name__ == "__main__":
    main()
