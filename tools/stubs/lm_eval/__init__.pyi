"""What of lm-evaluation-harness our public class derives from, for `make api-types` where it is not installed."""
