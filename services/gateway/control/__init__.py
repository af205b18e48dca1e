"""The slow loop: what requests were like, which stage binds, how many workers are wanted; decides no request."""
