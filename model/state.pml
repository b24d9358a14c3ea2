/* What the journal, the wire and the peers hold, and what is said of it everywhere. */

#define ALL ((1 << N) - 1)
#define B(i) (1 << (i))
#define J (N - 1)
#define LEAVER 1
#if (PLANS & 1) && !EXCLUDES
#define FIRST_VIEW (ALL & ~B(J))
#else
#define FIRST_VIEW ALL
#endif
#define NO 255

/* A step at a peer. */
#define NONE 0          /* not begun */
#define OPEN 1          /* begun, its contribution is out */
#define COMPLETE 2      /* the result is here, DONE is out */
#define WAITING 3       /* to be run again */
#define COMMITTED 4
#define FAILED 5
#define BEFORE 6        /* decided before this newcomer came */
/* Decisions. */
#define COMMIT 1
#define RETRY 2
#define FAIL 3

#define IS(i, s) ((i) * NS + (s))
#define ES(e, s) ((e) * NS + (s))
#define GI(g, i) ((g) * N + (i))
#define GIS(g, i, s) (((g) * N + (i)) * NS + (s))

/* The journal: what a coordinator starts from. */
byte dGen = 1, dHigh = 1, dView = 1, dKept = 0, dAct = 0;
bit dSwitched = 0, dFlushing = 0;
byte carried[NS], carriedAt[NS];

/* Views, as they are told: members, first step of J, and the epoch they are planned over. */
byte mem[NE + 1], joins[NE + 1], over[NE + 1];
/* Install and Activate: the newest coordinator that says so; Activate's step + 1; Switched's + 1. */
byte installBy[NE + 1], activateBy[NE + 1], from[NE + 1], entered[NE + 1];
byte decision[(NE + 1) * NS];

/* What else is on the wire: contributions, DONE; Hold, HoldFrom + 1, CancelPlan; FLUSH, REPORT. */
byte begun[(NE + 1) * NS], doneBy[(NE + 1) * NS];
byte holdFor[NG + 1], promised[(NG + 1) * N], cancelled[NG + 1];
byte flushTo[NG + 1], asked[NG + 1], judged[NG + 1];
byte told[NG + 1], toldEpoch[(NG + 1) * N], toldState[(NG + 1) * N * NS], toldAt[(NG + 1) * N * NS];

/* Peers. */
byte epoch[N], gen[N], frozenTo[N], hold[N], holdEpoch[N], pending[N];
byte state[N * NS], at[N * NS], failsAhead[N];

/* Ghosts: what was ever told to a program. */
byte committedAt[NS], committedBy[NS];
byte failed = 0;

/* Scratch of single deterministic steps, always 0 in between.  What lives on to a choice must not be
 * hidden: Spin does not give it its value back for the other choice. */
hidden byte x, y, z, used, wanted, oldest, knows, holds, newest, right;

/* Who takes part in step s in epoch e. */
#define TAKES_PART(e, s) (mem[e] & ~((s) < joins[e] -> B(J) : 0))
/* In no view: it has not come yet, or it was excluded, or it has left. */
#define OUTSIDE(i) ((mem[epoch[i]] & B(i)) == 0)
#define FROZEN(i) (frozenTo[i] > epoch[i])

inline reach(i, e) {           /* a view comes into force at a peer */
  printf("peer %d is in epoch %d, members %d\n", i, e, mem[e]);
  assert(e > epoch[i]);
  epoch[i] = e;
  hold[i] = NO; holdEpoch[i] = 0;
#ifndef MUT_PENDING_STAYS
  pending[i] = 0
#else
  if :: pending[i] == e -> pending[i] = 0 :: else fi
#endif
}

inline commit(i, s, e) {
  printf("peer %d commits step %d of epoch %d by %d\n", i, s, e, TAKES_PART(e, s));
  assert(committedAt[s] == 0 || committedAt[s] == e);
  assert(committedBy[s] == 0 || committedBy[s] == TAKES_PART(e, s));
  assert(!(failed & B(s)));
  committedAt[s] = e; committedBy[s] = TAKES_PART(e, s);
  state[IS(i, s)] = COMMITTED; at[IS(i, s)] = 0
}

inline fail(i, s) {
  printf("peer %d fails step %d\n", i, s);
  assert(committedAt[s] == 0);
  failed = failed | B(s);
  state[IS(i, s)] = FAILED; at[IS(i, s)] = 0
}

/* Forgets facts that nobody can use any more, so that equal futures are equal states. */
inline tidy() {
  x = 1;
  do
  :: x < dView ->
     used = 0; wanted = 0; y = 0;
     do
     :: y < N ->
        if :: epoch[y] == x -> used = 1 :: else fi;
        if :: epoch[y] < x && (mem[x] & B(y)) -> wanted = 1 :: else fi;
        z = 0;
        do :: z < NS -> if :: at[IS(y, z)] == x -> used = 1 :: else fi; z++ :: else -> break od;
        y++
     :: else -> break
     od;
     z = 0;
     do
     :: z < NS ->
        if :: !used && !wanted -> begun[ES(x, z)] = 0; doneBy[ES(x, z)] = 0 :: else fi;
        if :: !wanted -> decision[ES(x, z)] = 0 :: else fi;
        z++
     :: else -> break
     od;
     x++
  :: else -> break
  od;
  x = 0; y = 0; z = 0; used = 0; wanted = 0
}
