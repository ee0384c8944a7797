-- What the club had written down before procjobs came.

insert into club.member (surname, given_name, mail, region, speaks_for_club, left_on)
values
  ('Amsler', 'Vreni', 'vreni@club.example', null, true, null),
  ('Diallo', 'Awa', 'awa@club.example', 'Africa/Dakar', false, null),
  ('Frei', 'Urs', 'urs@club.example', null, false, date '2020-01-01'), ('Keller', 'Beat', null, null, false, null);
insert into club.crew values (1, 'Lake eight', null), (2, 'Old four', date '2019-05-01');
insert into club.seat (crew_no, member_no, duty) values (1, 1, 'trains'), (1, 4, 'steers'), (2, 1, 'trains');
insert into club.board values (1, 1, 'Boathouse');
insert into club.board_reader values (1, 1), (1, 2), (1, 3);
insert into club.note (board_no, by_member, kind, headline, words, pinned_at, withdrawn)
values (1, 1, 'picture', 'Mist on the lake', 'Six in the morning.', now() at time zone 'Europe/Zurich', false),
  (1, 1, 'word', 'Oops', null, now() at time zone 'Europe/Zurich', true);
insert into club.note_seen values (1, 1, localtimestamp);
insert into club.water values (1, 'Rotsee, Lucerne', 'Europe/Zurich'), (2, 'Lake Natoma', 'America/Los_Angeles');
insert into club.regatta (regatta_no, crew_no, called, water_no, begins, minutes, called_off_on)
values
  (7, 1, 'Long Distance Cup', 2, (now() + interval '20 hours') at time zone 'America/Los_Angeles', 90, null),
  (8, 1, 'Called off', 1, (now() + interval '20 hours') at time zone 'Europe/Zurich', 90, current_date);
insert into club.entry values (7, 2, 24), (7, 1, null), (7, 3, 24), (8, 2, 24);
insert into club.boat_order (order_no, crew_no, boat, buyer_no, deposit_on, rest_centimes, rest_on, struck_off)
values
  (40, 1, 'Eight "Föhn"', 1, now() at time zone 'Europe/Zurich' - interval '4 days', 1234550, null, false),
  (41, 1, 'Struck off', 1, now() at time zone 'Europe/Zurich' - interval '4 days', 100, null, true),
  (42, 1, 'Buyer has no mail', 4, now() at time zone 'Europe/Zurich' - interval '4 days', 100, null, false);
